"""Which joints are kept before training: their scores by KLAS, and the choice by these."""
