"""One load under planner, autoscalers, fixed clusters and the bound: what each costs and keeps."""
