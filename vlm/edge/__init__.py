"""The fine-tuned classifier as files for llama.cpp, and its answers when llama.cpp runs them."""
