"""Which joints are kept before training: scores of joints, and the choice by them."""
