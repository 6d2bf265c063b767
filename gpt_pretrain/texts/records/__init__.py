"""Records: lines of JSON, rows of CSV, values of tables, and the text in them."""
