"""What labd does with the machine itself: devices, systemd, doctor, GPUs, the file that is shipped. Some need an engine."""
