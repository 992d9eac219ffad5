"""The parts of `benches/run.py`, from the machine up: processes, postgres, database, load, service,
measured, measures, report."""
