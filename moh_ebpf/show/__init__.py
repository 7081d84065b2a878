"""What people see: words, tables, the live view."""
