"""Other libraries' names, arguments and result types, served by fastctc."""
