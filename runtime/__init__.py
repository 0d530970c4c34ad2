"""Stage 3: artifacts to measurements. Nothing heavy is imported here."""
