"""Ways into an archive for those who use something else: xarray, dask, Zarr, rio-tiler, a browser; each an extra."""
