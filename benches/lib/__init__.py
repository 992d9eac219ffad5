"""The parts of `benches/run.py`, from the machine up: processes and tools; postgres and databases;
content, service, load, bulk and copies; measured, one run; bench and measures; report."""
