"""Programs that measure: `python -m benchmarks.quantizers`, `python -m benchmarks.compare_quantizers`."""
