"""Archives over HTTP: map tiles, deep zoom, IIIF, regions, and a page to look at them."""
