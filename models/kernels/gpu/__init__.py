"""Operations of a decoder on CUDA devices, in Triton, each tested against its plain torch reference."""
