# Every target makes .venv itself when it is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
MUTATED := tests/test_recipe.py::test_two_hundred_mutants_and_more_are_all_refused_at_their_line
PROMISED := tests/promises $(MUTATED)
# What accelerate assumes anyway; said, so that it does not ask.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: demo test test-export test-studio promises promises-rivals mutants lint bench-speed bench-methods \
	bench-quick bench-gpu bench-memory bench-saves bars clean

demo: $(INSTALLED)  ## the main job: real Whisper, real speech, two CPU cores, about five minutes
	$(BIN)/python -m peft_whisper.demo
	$(LAUNCH) -m peft_whisper.train recipes/demo_cpu.yaml --fresh

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=25

# Its figures: real weights, speech and programs, the shipped adapter scored again.
test-export: $(INSTALLED)  ## exports decoded by faster-whisper, whisper.cpp, openai-whisper and transformers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -rP tests/exports/real_exports.py

promises: $(INSTALLED)  ## what README promises, every count in full, each figure printed
	PROMISES=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -rP $(PROMISED)

promises-rivals: $(INSTALLED)  ## P1 to P4 asked of Seq2SeqTrainer and PEFT in the same harness
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rivals/promises.py

mutants: $(INSTALLED)  ## each guard removed in turn: the test that is named for it must go red
	$(BIN)/python benchmarks/mutants.py

bench-saves: $(INSTALLED)  ## what share of the demo's training its checkpoints take
	$(BIN)/python -m peft_whisper.demo
	$(BIN)/python benchmarks/saves.py

# Its browser is Debian's: apt-get install chromium chromium-driver. Without one that test is skipped.
test-studio: $(INSTALLED)  ## the local page, in a headless browser where there is one
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[studio]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rPs tests/test_studio.py tests/test_microphone.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench-speed: $(INSTALLED)  ## training and decoding against Seq2SeqTrainer and PEFT, in turns, with WER
	$(BIN)/python -m peft_whisper.demo
	$(BIN)/python benchmarks/speed.py

bench-quick: $(INSTALLED)  ## a first look at what bench-methods makes, four updates each: 15 minutes on two cores
	$(BIN)/python -m peft_whisper.demo
	$(BIN)/python benchmarks/compare.py benchmarks/methods.yaml --quick

bench-methods: $(INSTALLED)  ## what can be trained, and what it gives: hours; ended at any point it goes on
	$(BIN)/python -m peft_whisper.demo
	$(BIN)/python benchmarks/compare.py benchmarks/methods.yaml --seeds 3 --updates 46 \
		--card a10 --card h100 --card-recipes benchmarks/methods_large_v3.yaml

bench-gpu: $(INSTALLED)  ## the same table for Large V3 on the card that is here: WER, memory, speed, energy
	$(BIN)/python -m peft_whisper.demo
	$(BIN)/python benchmarks/compare.py benchmarks/methods_large_v3.yaml --on benchmarks/large_v3.yaml \
		--seeds 3 --card a10 --card h100

bench-memory: $(INSTALLED)  ## the memory tracer against the CPU allocator's own log, 25 combinations
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/memory.py

bars: $(INSTALLED)  ## what `make demo` must have reached, checked on outputs/demo_cpu
	$(BIN)/python benchmarks/demo_bars.py outputs/demo_cpu

# openai-whisper is asked by the label and export tests; on its own it would fetch triton too.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,export]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps openai-whisper
	touch $@

clean:  ## runs in outputs/ stay
	rm -rf .venv .demo .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
