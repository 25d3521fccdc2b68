"""Where the workload runs: one interface, `base.Device`."""
