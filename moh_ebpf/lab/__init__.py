"""A UCM, its firewall and a SIP provider in network namespaces, and a call to try hold music on."""
