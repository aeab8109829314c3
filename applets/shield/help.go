package shield

// What stands below the flags in the help of a verb: examples, which a test
// reads by the grammar.

func (statusCmd) Help() string {
	return `Examples:

  terok-shield status                         what is installed here, and what is wrong with it
  terok-shield status demo                    up, down, disengaged, quarantine, offline, error
  terok-shield status demo --json             and who asks about it, and finds its names`
}

func (prepareCmd) Help() string {
	return `Examples:

  terok-shield prepare demo                   flags for podman run, quoted for a shell
  terok-shield prepare demo --profiles base,work --json`
}

func (runCmd) Help() string {
	return `Flags for Podman stand before the image. Examples:

  terok-shield run demo -- docker.io/library/alpine wget -qO- https://example.com
  terok-shield run demo --profiles base,work -- -it --rm docker.io/library/alpine sh`
}

func (resolveCmd) Help() string {
	return `Examples:

  terok-shield resolve demo                   after a profile has changed
  terok-shield resolve demo --force`
}

func (allowCmd) Help() string {
	return `Examples:

  terok-shield allow demo example.com         and what is below it
  terok-shield allow demo =example.com        the name alone
  terok-shield allow demo 203.0.113.0/24`
}

func (denyCmd) Help() string {
	return `What is denied is closed whatever else allows it. Examples:

  terok-shield deny demo ads.example.com
  terok-shield deny demo 203.0.113.9`
}

func (downCmd) Help() string {
	return `Examples:

  terok-shield down demo                      denied and private addresses stay closed
  terok-shield down demo --all                denied addresses stay closed
  terok-shield up demo                        and back`
}

func (upCmd) Help() string {
	return `It also mends a firewall that something else has changed. Example:

  terok-shield up demo`
}

func (quarantineCmd) Help() string {
	return `Nobody is asked about a container in quarantine. Examples:

  terok-shield quarantine demo
  terok-shield up demo                        and back`
}

func (resetCmd) Help() string {
	return `What is allowed stays so: a name's addresses are opened again when it is looked up again. Examples:

  terok-shield reset demo                     its addresses have changed, or should not be trusted
  terok-shield reset demo --json`
}

func (rulesCmd) Help() string {
	return `Examples:

  terok-shield rules demo
  terok-shield rules demo --json`
}

func (watchCmd) Help() string {
	return `Ends with the container. Examples:

  terok-shield watch demo --pretty
  terok-shield watch demo --all               also names that were found`
}

func (simpleClearanceCmd) Help() string {
	return `a N allows, d N denies, l lists, q quits. Example:

  terok-shield simple-clearance demo`
}

func (harvestCmd) Help() string {
	return `Examples:

  terok-shield harvest demo --since 1h
  terok-shield harvest demo --profile         to be read, thinned out, and used with --profiles`
}

func (logsCmd) Help() string {
	return `Examples:

  terok-shield logs                           of all containers
  terok-shield logs --container demo -n 10`
}

func (profilesCmd) Help() string {
	return `Yours go before the bundled ones of the same name. Example:

  terok-shield profiles`
}

func (setupCmd) Help() string {
	return `Containers that are not shielded are left alone. Examples:

  terok-shield setup
  terok-shield setup --desktop`
}

func (uninstallCmd) Help() string {
	return `Example:

  terok-shield uninstall`
}

func (environmentCmd) Help() string {
	return `The exit code is 0 whatever is found; with --json, "ok" says whether it is all well. Examples:

  terok-shield check-environment
  terok-shield check-environment --json`
}

func (previewCmd) Help() string {
	return `Examples:

  terok-shield preview
  terok-shield preview --down --all
  terok-shield preview --json`
}

func (configCmd) Help() string {
	return `Examples:

  terok-shield config
  terok-shield config --json`
}

func (completionCmd) Help() string {
	return `Packages install these. Without, for one shell:

  source <(terok-shield completion bash)`
}
