"""Ask a model: tokens of its images, attention maps, answers, likelihoods."""
