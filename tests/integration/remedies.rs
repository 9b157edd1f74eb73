//! Every remedy that is printed works: each halt and each refusal is carried to its end by what it prints.
