"""The embedded demo model: a small AFMoE that answers questions about this program, and the scripts that made it."""
