"""One run on a machine with a GPU: build, check, measure, test. ``bench/gpu.sh`` starts it."""
