"""The main job, shown: three worker processes checksum the files of the installed Python; one is
killed, one is added."""
