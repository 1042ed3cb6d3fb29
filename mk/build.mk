# How the product is compiled and installed.
