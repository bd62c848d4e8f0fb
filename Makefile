.PHONY: setup fmt lint types test bench peers golden docs all

setup:   ; pip install -c constraints.txt -e ".[dev]"
fmt:     ; ruff check --fix . && ruff format .
lint:    ; ruff check . && ruff format --check . && lint-imports
types:   ; mypy
test:    ; pytest
bench:   ; python -m recipes.bench.vision && python -m recipes.bench.decoding && python -m recipes.bench.audio
peers:   ; python -m recipes.bench.peers
golden:  ; STEC_GOLDEN=write pytest tests/recipes/test_golden.py
docs:    ; python -m recipes.results.table --write docs/results.md README.md && python -m recipes.vision.ambiguity --out docs/official-label.png
all:     lint types test
