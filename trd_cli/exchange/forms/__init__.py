"""Forms of responses made elsewhere, one file each; `registry` names them all."""
