"""Pure functions: values in, values out; no files, no models, no clocks."""
