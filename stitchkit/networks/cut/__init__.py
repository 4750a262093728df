"""The tracer: networks as steps by way of torch.fx, where no view says what the steps are."""
