"""Files of arrays and of pictures, whatever data set they hold: damage is told in words."""
