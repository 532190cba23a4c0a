"""Networks and their weights.  Nothing here knows of files other than weights, of records, or of scenes."""
