"""Storage: object stores and local disks.

A path to walk:
``object_store``    opens the store at a URL
``ownership``       what may be created, replaced and deleted at a URL
``outputs``         writes files and directories where a user asks for them
``durable_writes``  flushes local files before a commit
``lease``           one command at a time on a folder
``backoff``         retries for storage errors
``local_cache``     this user's cache, and markers of verified files
``model_files``     checks the files of a model directory
``model_listing``   lists the files of an exported model
"""
