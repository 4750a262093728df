# make demo, make demo-backbone, make demo-dense, make demo-sweep, make demo-compose: everything at small size, in a few minutes.
# make test: a case of every kind, in minutes.   make test-all: every case.   make lint: style and types.   CI runs all three.
# make nightly: 5,000 new odd files for every reader, every model as an anchor, and the costs of the whole zoo; it takes hours.
# make bench: our code against a plain reference; it takes long, and needs an idle machine.
# make bench-gpu: all that needs a GPU, in under nine minutes, with PYTHON as it is; ARGS=--help says what.
# Each other one creates the virtual environment .venv if it is missing; PYTHON names the interpreter. The demos install only what they
# need; the other targets also install the development tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(VENV)/.demo-installed)
DATA := data/digits
LAUNCH = PYTHON=$(BIN)/python ./distributed_train.sh 2
TRAIN = $(LAUNCH) $(DATA)
RUN := outputs/digits_vit

GLYPHS := data/glyphs
BACKBONES := outputs/glyphs_convnext
SCENES := data/scenes
DENSE := outputs/scenes_resnet
SWEEP := outputs/sweep_digits
COMPOSED := outputs/compose_digits

.PHONY: install demo demo-backbone demo-dense demo-sweep demo-compose test test-full test-all nightly lint bench bench-gpu clean
.DELETE_ON_ERROR:

install: $(INSTALLED)

$(INSTALLED): EXTRA := dev
$(VENV)/.demo-installed: EXTRA := demo
$(INSTALLED) $(VENV)/.demo-installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing; torch alone is several GB, so the first time takes minutes"
	@# compat: otherwise `import stitchkit` beside the clone finds the clone's folder and takes it for a package
	$(BIN)/python -m pip install -e '.[$(EXTRA)]' --config-settings editable_mode=compat
	@touch $@

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(INSTALLED)
	$(PYTEST) -m "not full and not nightly"

test-full: $(INSTALLED)
	$(PYTEST) -m "full and not nightly"

test-all: test test-full

nightly: $(INSTALLED)
	FUZZ_EXAMPLES=5000 $(PYTEST) -m full tests/fuzz
	$(PYTEST) -m nightly

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

bench-gpu:
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

demo: $(DEMO) $(RUN)/trained
	@echo "== every stitch of the SN-Net"
	$(TRAIN) --stitch-config configs/digits_vit.json --eval --resume $(RUN)/last.pth.tar
	$(BIN)/stitchkit pareto $(RUN)/stitches_res.txt --plot $(RUN)/pareto.png
	@printf '%s\n' '' 'Three anchors became 35 networks in one training run.' \
	  '  $(RUN)/stitches_res.txt  accuracy and cost of each' \
	  '  $(RUN)/pareto.png        the trade-off; open it' \
	  '  $(RUN)/last.pth.tar      the weights of all' \
	  'Next, the same with windows of three blocks, 51 networks of the same anchors: put "stitch_kernel_size": 3 into a copy' \
	  'of configs/digits_vit.json and run' \
	  '  ./distributed_train.sh 2 $(DATA) --stitch_config YOUR.json' \
	  'or your own images: ./distributed_train.sh 2 YOUR_FOLDER --stitch_config configs/deit_ti_s_b.json --distillation-type none'

demo-backbone: $(DEMO) $(BACKBONES)/trained
	@echo "== every stitch of the two backbones, judged by its features"
	$(LAUNCH) $(GLYPHS) --stitch-config configs/glyphs_convnext.json --eval --resume $(BACKBONES)/last.pth.tar
	$(BIN)/stitchkit pareto $(BACKBONES)/stitches_res.txt --metric knn --plot $(BACKBONES)/pareto.png
	@printf '%s\n' '' 'Two backbones became nine, without a label, and both stayed what they were.' \
	  '  $(BACKBONES)/stitches_res.txt  k-NN and linear-probe accuracy, agreement and cost of each' \
	  '  $(BACKBONES)/pareto.png        the trade-off; open it' \
	  '  $(BACKBONES)/last.pth.tar      the weights of all' \
	  'Next, one of them as a file:' \
	  '  $(BIN)/stitchkit export -c $(BACKBONES)/eval_args.yaml --resume $(BACKBONES)/last.pth.tar \' \
	  '    --ledger $(BACKBONES)/stitches_res.txt --metric knn --max-flops 1M -o backbone.onnx' \
	  'or your own photos and DINOv2: docs/backbones.md'

demo-dense: $(DEMO) $(DENSE)/trained
	@echo "== every stitch of two small ResNets, judged by the class of each pixel"
	$(LAUNCH) $(SCENES) --stitch-config configs/scenes_resnet.json --eval --resume $(DENSE)/last.pth.tar
	$(BIN)/stitchkit pareto $(DENSE)/stitches_res.txt --plot $(DENSE)/pareto.png
	@printf '%s\n' '' 'Two anchors became 8 networks for segmentation in one training run, with one head.' \
	  '  $(DENSE)/examples.png      images, their truth, and what three stitches make of them; open it' \
	  '  $(DENSE)/pareto.png        mean IoU over FLOPs, with its 95 % band' \
	  '  $(DENSE)/stitches_res.txt  mean IoU, pixel accuracy and cost of each' \
	  'Next, one of them as a file:' \
	  '  $(BIN)/stitchkit export -c $(DENSE)/eval_args.yaml --resume $(DENSE)/last.pth.tar \' \
	  '    --ledger $(DENSE)/stitches_res.txt --max-flops 30M -o scenes.onnx' \
	  'or your own masks: docs/dense.md'

demo-sweep: $(DEMO) outputs/digits_r18/trained outputs/digits_s/trained
	@echo "== from the ResNet into the ViT: every gap, every adapter"
	$(BIN)/stitchkit sweep -c configs/across-scales/digits.yml -o $(SWEEP) --jobs 2 --device cpu
	@printf '%s\n' '' 'Pieces of two trained networks were joined by adapters; only the adapters were trained.' \
	  '  $(SWEEP)/digits-heatmap.png      which gap can be bridged by what; open it' \
	  '  $(SWEEP)/digits-parameters.png   what each adapter costs' \
	  '  $(SWEEP)/results.csv             all epochs of all jobs' \
	  'Next, the plan of a published sweep, without data or weights:' \
	  '  $(BIN)/stitchkit sweep -c configs/across-scales/resnet-50-swin-t.yml --dry-run'

demo-compose: $(DEMO) outputs/digits_r18/trained outputs/digits_r26/trained outputs/digits_dense/trained
	@echo "== fragments of three networks, put together without training"
	@rm -rf $(COMPOSED)
	$(BIN)/stitchkit compose --data $(DATA) --nets configs/compose/digits.json --img-size 32 \
	  --num-images 256 --threshold 0.3 --total-threshold 0.3 -k 3 -o $(COMPOSED)
	$(BIN)/stitchkit pareto $(COMPOSED)/stitches_res.txt --plot $(COMPOSED)/pareto.png > $(COMPOSED)/pareto.txt
	@printf '%s\n' '' 'Nothing was trained after the three networks: joints are solved in closed form on 256 images.' \
	  '  $(COMPOSED)/stitches_res.txt   accuracy and cost of each; parents_acc1 is the average of its parents' \
	  '  $(COMPOSED)/pareto.png         all of them over their cost' \
	  'Next, your own: $(BIN)/stitchkit compose --data YOUR_FOLDER --nets resnet50,vgg16 -o outputs/composed'

DIGITS_VIT := img_size=32 patch_size=8 depth=6 global_pool=avg weight_init=jax
ti := embed_dim=8 num_heads=2 --epochs 75
s := embed_dim=16 num_heads=2
b := embed_dim=48 num_heads=4 --lr 3e-3

# --resume auto: so that an interrupted `make demo` resumes its training.
outputs/digits_%/trained: $(DATA)/validation
	@echo "== anchor $*: a ViT with $($*)"
	$(TRAIN) -c configs/digits_anchor.yaml --model vit_tiny_patch16_224 \
	  --model-kwargs $(DIGITS_VIT) $($*) --experiment digits_$* --resume auto
	@touch $@

outputs/digits_r18/trained: $(DATA)/validation
	@echo "== a small ResNet"
	$(TRAIN) -c configs/digits_anchor.yaml --epochs 25 --model resnet18 --img-size 32 --model-kwargs layers=[2,2,2,2] \
	  channels=[8,16,24,32] stem_type=deep stem_width=8 --experiment digits_r18 --resume auto
	@touch $@

outputs/digits_r26/trained: $(DATA)/validation
	@echo "== a small ResNet of bottlenecks"
	$(TRAIN) -c configs/digits_anchor.yaml --epochs 20 --model resnet26 --img-size 32 --model-kwargs layers=[1,1,1,1] \
	  channels=[4,8,12,16] stem_type=deep stem_width=8 --experiment digits_r26 --resume auto
	@touch $@

outputs/digits_dense/trained: $(DATA)/validation
	@echo "== a small DenseNet"
	$(TRAIN) -c configs/digits_anchor.yaml --epochs 20 --model densenet169 --img-size 32 \
	  --model-kwargs growth_rate=8 block_config=[2,2,2,2] --experiment digits_dense --resume auto
	@touch $@

GLYPHS_SIZE := -c configs/digits_anchor.yaml --model convnext_atto --img-size 32

outputs/glyphs_s/trained: $(GLYPHS)/validation
	@echo "== backbone s: a small ConvNeXt, trained with labels"
	$(LAUNCH) $(GLYPHS) $(GLYPHS_SIZE) --epochs 12 --warmup-epochs 1 --model-kwargs depths=[1,1,2,1] dims=[16,24,32,48] \
	  --experiment glyphs_s --resume auto
	@touch $@

outputs/glyphs_b/trained: $(GLYPHS)/validation
	@echo "== backbone b: a larger one"
	$(LAUNCH) $(GLYPHS) $(GLYPHS_SIZE) --epochs 25 --model-kwargs depths=[2,2,8,2] dims=[24,32,48,64] \
	  --experiment glyphs_b --resume auto
	@touch $@

$(BACKBONES)/trained: outputs/glyphs_s/trained outputs/glyphs_b/trained
	@echo "== all stitches of the two, without their classifiers and without labels, on other images"
	$(LAUNCH) $(GLYPHS)/unlabelled --stitch-config configs/glyphs_convnext.json --resume auto
	@touch $@

$(DENSE)/trained: $(SCENES)/validation
	@echo "== all stitches of two ResNets and their head, from scratch, on rendered scenes"
	$(LAUNCH) $(SCENES) --stitch-config configs/scenes_resnet.json --resume auto
	@touch $@

$(RUN)/trained: outputs/digits_ti/trained outputs/digits_s/trained outputs/digits_b/trained
	@echo "== all stitches of the three anchors, trained together"
	$(TRAIN) --stitch-config configs/digits_vit.json --resume auto
	@touch $@

$(DATA)/validation: | $(DEMO)
	$(BIN)/stitchkit demo-data digits $(DATA)

$(GLYPHS)/validation: | $(DEMO)
	$(BIN)/stitchkit demo-data glyphs $(GLYPHS)

$(SCENES)/validation: | $(DEMO)
	$(BIN)/stitchkit demo-data scenes $(SCENES)

.PRECIOUS: outputs/digits_%/trained $(DATA)/validation $(GLYPHS)/validation $(SCENES)/validation

clean:
	rm -rf outputs data build *.egg-info
