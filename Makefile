.PHONY: install lint types test docs all

install:
	uv sync

lint:
	uv run ruff check --fix .
	uv run ruff format .
	uv run lint-imports

types:
	uv run basedpyright

test:
	uv run pytest

docs:
	uvx --with mkdocs-material mkdocs build --strict

all: lint types test
