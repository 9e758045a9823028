"""Every operation: its definition in plain torch and its fast twin."""
