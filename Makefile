.DEFAULT_GOAL := help
# The verbs of CI (scripts/test) and the set-up, for those who like to type `make check`.
.PHONY: help check fmt lint test doc generated demo bench chaos

help: ## this list
	@sed -n "s/^\([a-z]*\):.* ## /  \1\t/p" Makefile

check: ## everything that CI runs
	scripts/test
fmt: ## format the code
	cargo fmt
lint: ## formatting, clippy and shellcheck
	scripts/test fmt scripts clippy
test: ## unit, integration and documentation tests
	scripts/test tests doctests
doc: ## build the documentation
	scripts/test doc
generated: ## make the generated files again
	cargo run --quiet -- config sample > sample.env
demo: ## one night with throw-away servers
	scripts/demo
bench: ## the figures of docs/benchmarks.md
	scripts/bench replication
	scripts/bench incremental
chaos: ## the slow kill matrix
	scripts/chaos
