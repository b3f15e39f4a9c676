"""Everything that speaks diffusers: pipelines as experts, and students as pipelines."""
