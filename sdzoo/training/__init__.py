"""Everything around timm's own train script: data sets, launching, evaluation, recipes."""
