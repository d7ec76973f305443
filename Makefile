# Two commands: `make up` (cluster, images, release, train and predict on real data) and `make test`.
# Every target is a command of `python3 -m ci`, which runs on Python's standard library alone.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help up down clean status kubeconfig images test test-fast coverage mutants bench lock docs

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  CLUSTER=auto|kind|minikube|existing|embedded   DATA=file.csv   IMAGE_REGISTRY=registry.example.com/team\n'

up: ## Cluster, images, helm install, then train and predict on real data
	@$(PYTHON) -m ci up

down: ## Remove the cluster that `make up` made, and nothing else
	@$(PYTHON) -m ci down

clean: ## `make down`, and empty the cache of programs, packages and images
	@$(PYTHON) -m ci clean

status: ## What runs and how to reach it
	@$(PYTHON) -m ci status

kubeconfig: ## Print the path of the cluster's kubeconfig
	@$(PYTHON) -m ci kubeconfig

images: ## Build the images; push them to IMAGE_REGISTRY where it is set
	@$(PYTHON) -m ci images

test: ## All tests; brings the cluster up where it is not
	@$(PYTHON) -m ci test

test-fast: ## Format, lint, types, unit tests and render assertions; no cluster, no root
	@$(PYTHON) -m ci test-fast

coverage: ## Which branches of the templates the render tests take
	@$(PYTHON) -m ci coverage

mutants: ## How many mistakes in templates and values the render tests notice; MUTANTS="--changed main" for few
	@$(PYTHON) -m ci mutants

bench: ## Measure speed, memory and growth beside the baseline; BENCH=quick for a short run
	@$(PYTHON) -m ci bench

lock: ## Remake requirements/ from pyproject.toml
	@$(PYTHON) -m ci lock

docs: ## Remake the charts' README tables and schemas from the comments in their values
	@$(PYTHON) -m ci docs
