"""Many processes at one piece of work: locks, executors, and jobs that machines share through a folder."""
