"""Few-shot tasks: Subset Masked Language Modeling Tasks (SMLMT), and tasks over given sentences."""
