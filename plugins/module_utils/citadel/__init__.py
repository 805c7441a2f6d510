"""What a Citadel host knows how to do, in the standard library alone.

The same package serves three callers: Ansible modules import it as `ansible.module_utils.citadel`, filters on
the controller import it as `citadel`, and each release carries a copy that its units run as `python3 -m citadel`.
"""
