"""What needs neither an engine nor a labd that was built: scripts, probes, the documentation. `make check` runs these."""
