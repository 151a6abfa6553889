"""What runs on the device: Triton programs, without anything of torch. Triton runs them on a CPU, too, interpreted."""
