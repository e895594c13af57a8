# The commands of the README. Everything is installed into $(VENV), from the package registry, at pinned versions.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= full
BIN = $(VENV)/bin
BOOK = $(BIN)/attractor-book
HTML = book/_build/html/index.html
DEVICE ?= cuda
CHAPTERS ?= $(shell grep -l '"device = ' notebooks/[0-9]*.ipynb)
ONE_THREAD = OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help book pdf site links browser check test reproduce results bench compare clean

help:
	@echo "make book       set up, then build the HTML book from the committed outputs"
	@echo "make pdf        set up, then the whole book as one PDF; needs a Chromium (see the README)"
	@echo "make check      set up, then format, lint and the quick unit tests: 2 minutes on 2 cores"
	@echo "make test       set up, then make check, the slow tests, and the checks of every notebook"
	@echo "make reproduce  set up, execute every chapter afresh (about a quarter of an hour on 2 cores), and build that book"
	@echo "make results    set up, then those long runs behind the chapters that are not stored yet (all: FORCE=--force, a day)"
	@echo "make compare    set up, execute the chapters on DEVICE (default: cuda), and compare with the committed ones"
	@echo "make site       the book and the PDF as they are published; make browser fetches a Chromium if there is none"
	@echo "make links      set up, then try every link of the book, the outside ones too"
	@echo "make bench      set up, then every comparison of speed and cost, 18 minutes on 2 cores (3: PROFILE=quick)"
	@echo "make clean      remove what was built; the environment stays"

# The stamp is touched last: an interrupted set-up is taken up again.
$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else 'Python 3.11 or newer is needed, got %d.%d: try make PYTHON=python3.12' % v[:2])"
	@echo "== set-up: a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[fast,data,book,sweep,test]'
	@touch $@

book: $(VENV)/.complete
	@echo "== building the book from the committed outputs"
	$(BIN)/jupyter-book build book -W --keep-going
	@echo "== the book is at $(HTML)"

pdf: $(VENV)/.complete
	@echo "== all pages as one, then printed"
	$(BIN)/jupyter-book build book --builder singlehtml -W --keep-going
	$(BIN)/python book/pdf.py
	@echo "== the PDF is book/_build/pdf/book.pdf"

site: book pdf
	cp book/_build/pdf/book.pdf book/_build/html/
	@echo "== the pages, with the PDF, are in book/_build/html"

links: $(VENV)/.complete
	$(BIN)/jupyter-book build book --builder linkcheck

# One that is there is taken; where playwright's cannot be fetched, Debian's may be.
browser: $(VENV)/.complete
	$(BIN)/python book/pdf.py --browser || $(BIN)/playwright install --with-deps chromium \
		|| { apt-get update && apt-get install --yes chromium; }
	@$(BIN)/python book/pdf.py --browser

check: $(VENV)/.complete
	@echo "== format and lint"
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	@echo "== data"
	$(BOOK) data MNIST
	@echo "== quick unit tests"
	$(ONE_THREAD) $(BIN)/python -m pytest tests -m "not slow and not browser" -n 2 --dist worksteal

test: check
	@echo "== slow unit tests, and those in a browser"
	$(BIN)/python -m pytest tests -m "slow or browser" -v
	@echo "== every notebook executed again and compared with its committed outputs, two at a time"
	$(ONE_THREAD) $(BIN)/python -m pytest --nbval --nbval-current-env -n 2 --dist loadfile -v notebooks
	@echo "== all tests passed"

reproduce: $(VENV)/.complete
	@echo "== executing every chapter; the committed notebooks stay as they are"
	$(BOOK) rerun --all --output-dir _build/reproduce/notebooks
	$(BOOK) rerun --book _build/reproduce
	@echo "== the reproduced book is at _build/reproduce/book/$(HTML:book/%=%)"

results: $(VENV)/.complete
	$(BOOK) results $(FORCE)
	@echo "== the results are in notebooks/results; the chapters show them"

bench: $(VENV)/.complete
	$(BIN)/python benchmarks/run.py --profile $(PROFILE)

compare: $(VENV)/.complete
	rm -rf _build/compare
	for chapter in $(CHAPTERS); do $(BOOK) rerun $$chapter -p device $(DEVICE) \
		-o _build/compare/$$(basename $$chapter) || exit 1; done
	$(BOOK) compare notebooks _build/compare

clean:
	rm -rf book/_build _build
