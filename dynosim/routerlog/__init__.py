"""Router logs on disk: written, rotated, and every decision derived again."""
