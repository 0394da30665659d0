PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test check docs setup clean

demo: $(VENV)/.installed
	$(RUN)/c2r demo

test: $(VENV)/.installed
	$(RUN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed
	scripts/check

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
