# Carme: build, test, testbed and demo. `make help` lists every target.
SHELL := /bin/bash
.DEFAULT_GOAL := help

include mk/build.mk
include mk/testbed.mk
