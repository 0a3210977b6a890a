"""What is done with any `nn.Module`: call, watch and copy it, read its answers, replace its layers."""
