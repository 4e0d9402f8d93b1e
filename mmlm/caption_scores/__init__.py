"""How near written captions are to reference captions."""
