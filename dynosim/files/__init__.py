"""What users hand in and what disks do: texts that may be broken, faults that may pass."""
