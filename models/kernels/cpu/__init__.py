"""CPU kernels in C++ behind a plain C interface on raw pointers, each with its plain torch reference beside it."""
