"""Does stitching pay, against distillation, slimming and cascades at equal training FLOPs?"""
