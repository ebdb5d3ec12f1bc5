"""What tests and benches stand on: labs of their own, machines with systemd, a second engine, random faults."""
