"""Check Parquet files before Arrow reads them, and read a few rows at a time."""
